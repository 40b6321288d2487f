//! The people on the wire.

use proto::keys::v1::{self as pb, people_service_server::PeopleService};
use runtime::actor;
use tonic::{Request, Response};

use super::{Keys, Reply, second_factor_at};

#[tonic::async_trait]
impl PeopleService for Keys {
    async fn sign_up(&self, request: Request<pb::SignUpRequest>) -> Reply<pb::SignUpResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.sign_up_person(actor, request.into_inner()).await?,
        ))
    }

    async fn resend_verification(
        &self,
        request: Request<pb::ResendVerificationRequest>,
    ) -> Reply<pb::ResendVerificationResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.verify_again(actor, request.into_inner()).await?,
        ))
    }

    async fn verify_email(
        &self,
        request: Request<pb::VerifyEmailRequest>,
    ) -> Reply<pb::VerifyEmailResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.verify_address(actor, request.into_inner()).await?,
        ))
    }

    async fn authenticate(
        &self,
        request: Request<pb::AuthenticateRequest>,
    ) -> Reply<pb::AuthenticateResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.sign_in(actor, request.into_inner()).await?,
        ))
    }

    async fn verify_second_factor(
        &self,
        request: Request<pb::VerifySecondFactorRequest>,
    ) -> Reply<pb::VerifySecondFactorResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.second_factor(actor, request.into_inner()).await?,
        ))
    }

    async fn start_totp(
        &self,
        request: Request<pb::StartTotpRequest>,
    ) -> Reply<pb::StartTotpResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.enrol(actor, request.into_inner()).await?,
        ))
    }

    async fn confirm_totp(
        &self,
        request: Request<pb::ConfirmTotpRequest>,
    ) -> Reply<pb::ConfirmTotpResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.confirm_totp_of(actor, request.into_inner()).await?,
        ))
    }

    async fn disable_totp(
        &self,
        request: Request<pb::DisableTotpRequest>,
    ) -> Reply<pb::DisableTotpResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.disable_totp_of(actor, request.into_inner()).await?,
        ))
    }

    async fn renew_recovery_codes(
        &self,
        request: Request<pb::RenewRecoveryCodesRequest>,
    ) -> Reply<pb::RenewRecoveryCodesResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.renew_codes(actor, request.into_inner()).await?,
        ))
    }

    async fn request_password_reset(
        &self,
        request: Request<pb::RequestPasswordResetRequest>,
    ) -> Reply<pb::RequestPasswordResetResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.forgot_password(actor, request.into_inner()).await?,
        ))
    }

    async fn reset_password(
        &self,
        request: Request<pb::ResetPasswordRequest>,
    ) -> Reply<pb::ResetPasswordResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.choose_password(actor, request.into_inner()).await?,
        ))
    }

    async fn change_password(
        &self,
        request: Request<pb::ChangePasswordRequest>,
    ) -> Reply<pb::ChangePasswordResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.change_password_of(actor, request.into_inner()).await?,
        ))
    }

    async fn get_user(&self, request: Request<pb::GetUserRequest>) -> Reply<pb::GetUserResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.person(actor, request.into_inner()).await?,
        ))
    }

    async fn update_user(
        &self,
        request: Request<pb::UpdateUserRequest>,
    ) -> Reply<pb::UpdateUserResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.change_user(actor, request.into_inner()).await?,
        ))
    }

    async fn reset_second_factor(
        &self,
        request: Request<pb::ResetSecondFactorRequest>,
    ) -> Reply<pb::ResetSecondFactorResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.reset_factor(actor, request.into_inner()).await?,
        ))
    }

    async fn list_organisations_of(
        &self,
        request: Request<pb::ListOrganisationsOfRequest>,
    ) -> Reply<pb::ListOrganisationsOfResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.places(actor, request.into_inner()).await?,
        ))
    }

    async fn create_invitation(
        &self,
        request: Request<pb::CreateInvitationRequest>,
    ) -> Reply<pb::CreateInvitationResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.invite(actor, request.into_inner()).await?,
        ))
    }

    async fn list_invitations(
        &self,
        request: Request<pb::ListInvitationsRequest>,
    ) -> Reply<pb::ListInvitationsResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.sent_invitations(actor, request.into_inner()).await?,
        ))
    }

    async fn resend_invitation(
        &self,
        request: Request<pb::ResendInvitationRequest>,
    ) -> Reply<pb::ResendInvitationResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.invite_again(actor, request.into_inner()).await?,
        ))
    }

    async fn revoke_invitation(
        &self,
        request: Request<pb::RevokeInvitationRequest>,
    ) -> Reply<pb::RevokeInvitationResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.uninvite(actor, request.into_inner()).await?,
        ))
    }

    async fn accept_invitation(
        &self,
        request: Request<pb::AcceptInvitationRequest>,
    ) -> Reply<pb::AcceptInvitationResponse> {
        let actor = actor(&request);
        Ok(Response::new(self.join(actor, request.into_inner()).await?))
    }

    async fn update_member_role(
        &self,
        request: Request<pb::UpdateMemberRoleRequest>,
    ) -> Reply<pb::UpdateMemberRoleResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.change_role(actor, request.into_inner()).await?,
        ))
    }

    async fn get_invitation(
        &self,
        request: Request<pb::GetInvitationRequest>,
    ) -> Reply<pb::GetInvitationResponse> {
        Ok(Response::new(
            self.shown_invitation(request.into_inner()).await?,
        ))
    }

    async fn transfer_ownership(
        &self,
        request: Request<pb::TransferOwnershipRequest>,
    ) -> Reply<pb::TransferOwnershipResponse> {
        let (actor, factor) = (actor(&request), second_factor_at(&request)?);
        let reply = self.hand_over(actor, factor, request.into_inner()).await?;
        Ok(Response::new(reply))
    }
}
